"""Where images come from: folders, archives, WebDataset tars and named datasets."""
