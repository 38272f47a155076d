"""What happens to a spec: it is built, trained, watched and written down."""
