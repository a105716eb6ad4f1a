"""A small student of the preset digits that ships with the project, for `ayf demo`; made by docs/demo_model.py."""
