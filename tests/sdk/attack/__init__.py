"""The attack set at every door of the SDK: one source of cases, and adapters find themselves."""
