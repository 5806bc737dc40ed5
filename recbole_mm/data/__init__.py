"""From raw downloads and RecBole atomic files to interactions, item content and loaders."""
