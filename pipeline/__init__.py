"""The roof: the ``curate`` command, the driver, and the stages that Beam runs."""
