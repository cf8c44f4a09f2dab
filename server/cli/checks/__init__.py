"""The checks of `keyleash doctor`, by what each looks at. They change nothing."""
