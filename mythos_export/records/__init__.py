"""JSON files in or beside a bundle, each declared once; pydantic is all it takes to read them."""
