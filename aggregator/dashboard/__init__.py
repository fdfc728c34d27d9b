"""Web pages for administrators: one URL, one function, one template. Reads the same rows as the rounds; changes none."""
