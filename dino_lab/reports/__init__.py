"""What finished runs say together: tables, differences and how sure they are, pictures."""
