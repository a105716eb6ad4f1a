"""The `ayf` command, one file a group of commands."""
