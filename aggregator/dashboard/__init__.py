"""Web pages for administrators: one URL, one function, one template. Reads the rounds' rows; changes none."""
