"""What DVC sees: where everything lies, the stages and what each needs, their settings and code; and dvc itself."""
