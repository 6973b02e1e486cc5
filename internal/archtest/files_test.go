package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"strconv"
	"strings"
)

// maxLines is how long a Go file may be; beyond it a file holds more than one subject.
const maxLines = 550

// checkFile returns one line for each rule that a Go file breaks. Name is its path, for the message.
func checkFile(name string, src []byte) ([]string, error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, fmt.Errorf("parse Go file: %w", err)
	}
	var broken []string
	lines := bytes.Count(src, []byte("\n"))
	if lines > maxLines && !ast.IsGenerated(f) {
		broken = append(broken, fmt.Sprintf("%s: %d lines, at most %d", name, lines, maxLines))
	}
	if strings.HasSuffix(name, "_test.go") {
		for _, pos := range sleeps(f) {
			broken = append(broken, fmt.Sprintf("%s:%d: time.Sleep in a test: wait for the thing itself", name, fset.Position(pos).Line))
		}
	}
	return broken, nil
}

// sleeps finds the uses of time.Sleep, by whatever name the file imports the package.
func sleeps(f *ast.File) []token.Pos {
	local := ""
	for _, spec := range f.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err != nil || p != "time" {
			continue
		}
		local = "time"
		if spec.Name != nil {
			local = spec.Name.Name
		}
	}
	if local == "" {
		return nil
	}
	var found []token.Pos
	var visit func(n ast.Node) bool
	visit = func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == local && n.Sel.Name == "Sleep" {
				found = append(found, n.Pos())
			}
			ast.Inspect(n.X, visit) // and not n.Sel, which is some other Sleep
			return false
		case *ast.Ident:
			if local == "." && n.Name == "Sleep" {
				found = append(found, n.Pos())
			}
		}
		return true
	}
	ast.Inspect(f, visit)
	return found
}

// skipped tells whether a folder holds none of the platform's own Go files.
func skipped(folder string) bool {
	base := path.Base(folder)
	return base == "testdata" || base == "vendor" || base == "node_modules" || len(base) > 1 && (base[0] == '.' || base[0] == '_')
}
