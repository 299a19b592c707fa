"""Students: the small models that judge pseudo labels and ship to devices."""
