"""The loss terms; each module holds one equation."""
