"""AP as served."""
