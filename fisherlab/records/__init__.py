"""The tidy table: its columns, what each number means, and the words and colours that it is shown with."""
