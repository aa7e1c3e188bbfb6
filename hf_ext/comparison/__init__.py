"""Methods against forgetting and their rivals, trained and measured alike: one table, one plot."""
