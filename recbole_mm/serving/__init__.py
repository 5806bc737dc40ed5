"""A finished run behind HTTP: recommendations, similar items, items with their pictures, and a page to look at them."""
