"""Fast exact ranking through RecBole's metrics, per-user results and significance."""
