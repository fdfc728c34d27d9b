"""Single files of the export: walking, header pass, pixel data, Hounsfield units."""
