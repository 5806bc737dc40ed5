"""The reasoning stage: descriptions of items, profiles and preferences of users, and the vectors of the former two."""
