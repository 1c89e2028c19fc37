"""Between plan and loop: what hands samples out, and how it is known whose losses come back."""
