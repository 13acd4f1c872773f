"""Quality of generated images: features, metrics, and a verdict.

images --extractors--> features, logits --metrics--> values beside those of real images --verdict-->
a name and the figures behind it
"""
