"""An example of a plug-in: an objective, a network, a data set, a space of features and a measure, outside the project.

`plugins: [ayf_example]` in params.yaml is all that the project is told of it.
"""
