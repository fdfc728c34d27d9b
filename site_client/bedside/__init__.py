"""Answers of a packed model beside the archive: the program `hemofed-predict`, without torch and without a network."""
