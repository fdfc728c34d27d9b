"""Everything that decides what leaves the hospital. A security officer reads this folder."""
