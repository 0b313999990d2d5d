"""Where objects live: a directory or an S3 bucket."""
