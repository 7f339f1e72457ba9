"""The dashboard: pages rendered here from the same rules as the API. A page knows no rule of its own."""
