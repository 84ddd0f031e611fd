"""The command line: thin programs that parse, call and print. `nsr <command> --help` describes each."""
