"""Did it work? Features of fakes and reals, distances between them, and a verdict in words.

images --extractors--> features, logits --metrics--> values beside the reals' own --verdict--> one name, one sentence
"""
