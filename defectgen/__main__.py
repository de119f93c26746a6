from defectgen.cli import main

main()
