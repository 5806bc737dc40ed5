"""MLLMRec's reasoning stage: descriptions of items, profiles of users, and the sentence vectors of both."""
