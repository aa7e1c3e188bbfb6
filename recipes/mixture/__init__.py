"""Recipe of a mixture of sources whose shares follow what each does for a target."""
