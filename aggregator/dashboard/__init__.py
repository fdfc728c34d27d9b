"""Web pages for administrators: one URL, one function, one template. They read the rows of rounds and change none."""
