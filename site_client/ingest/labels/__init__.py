"""Label tables of hospitals and of the RSNA 2019 challenge, read into cells by pseudonym."""
