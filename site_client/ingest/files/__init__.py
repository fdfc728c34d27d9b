"""Single files of the export: walking, and the processes that read headers and pixels; Hounsfield units."""
