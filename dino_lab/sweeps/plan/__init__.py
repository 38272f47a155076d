"""What a sweep file asks for: its trials, and how long they will take."""
