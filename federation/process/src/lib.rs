//! What every Archipelago process does: logs, signals, durable files, the metrics port.
