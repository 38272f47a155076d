"""Built-in components: one file for each, named as the component, in a folder for each kind."""
