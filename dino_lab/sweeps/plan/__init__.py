"""The trials of a sweep file, and an estimate of their duration."""
