"""A page where people judge what models wrote, and a database that loses none of it."""
