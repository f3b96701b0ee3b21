"""What every setting resolves to, as `EngineArgs.create_engine_config` has it."""
