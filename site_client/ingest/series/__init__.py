"""Series: split into stacks, assessed by geometry and content, read as volumes of Hounsfield units."""
