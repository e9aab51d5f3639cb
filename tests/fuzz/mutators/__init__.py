"""Changes that know the format: what is written stays close enough to a valid file to get past its first checks."""
