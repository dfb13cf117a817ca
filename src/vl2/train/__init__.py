"""Settings, one trainer for every stage, optimisers, adapters, figures."""
