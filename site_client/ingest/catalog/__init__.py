"""The catalog: the trainer's database of files, series and labels, and the datasets made from it."""
