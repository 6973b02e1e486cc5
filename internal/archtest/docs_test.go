package archtest

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// mostEdited is how many existing files a recipe of DEVELOPMENT.md may touch.
var mostEdited = map[string]int{
	"projection": 1, "event-type": 0, "topic": 2, "consumer": 4, "endpoint": 2, "setting": 1, "migration": 0,
}

// step is a line of a recipe.
type step struct {
	recipe string
	isNew  bool
	path   string
	anchor string // what stands in the file where it is edited
}

// recipes reads the recipes of a page: blocks whose language is "recipe", with a name.
func recipes(page string) (steps []step, err error) {
	name := ""
	for line := range strings.Lines(page) {
		line = strings.TrimRight(line, "\n")
		if after, found := strings.CutPrefix(line, "```recipe "); found {
			name = after
			continue
		}
		if name == "" {
			continue
		}
		if line == "```" {
			name = ""
			continue
		}
		verb, rest, _ := strings.Cut(line, " ")
		file, anchor, _ := strings.Cut(strings.TrimSpace(rest), " ")
		s := step{recipe: name, isNew: verb == "new", path: file, anchor: strings.TrimSpace(anchor)}
		if verb != "new" && verb != "edit" || file == "" || s.isNew != (s.anchor == "") {
			return nil, fmt.Errorf("recipe %s: %q is neither \"new PATH\" nor \"edit PATH ANCHOR\"", name, line)
		}
		steps = append(steps, s)
	}
	return steps, nil
}

// check returns what is wrong with a step in the repository below dir, empty if nothing is.
func (s step) check(dir string) string {
	if s.isNew {
		folder := path.Dir(s.path)
		for strings.Contains(folder, "<") { // one that is new too
			folder = path.Dir(folder)
		}
		if !strings.Contains(s.path, "<") {
			return fmt.Sprintf("%s: %s says nowhere what is to be named", s.recipe, s.path)
		}
		if info, err := os.Stat(filepath.Join(dir, folder)); err != nil || !info.IsDir() {
			return fmt.Sprintf("%s: there is no folder %s for %s", s.recipe, folder, s.path)
		}
		return ""
	}
	text, err := os.ReadFile(filepath.Join(dir, s.path))
	if err != nil {
		return fmt.Sprintf("%s: %v", s.recipe, err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(strings.TrimSpace(line), s.anchor) {
			return ""
		}
	}
	return fmt.Sprintf("%s: no line of %s begins with %q", s.recipe, s.path, s.anchor)
}

// checkRecipes returns one line for each thing that is wrong with the recipes of a page.
func checkRecipes(dir, page string, most map[string]int) []string {
	steps, err := recipes(page)
	if err != nil {
		return []string{err.Error()}
	}
	var broken []string
	edited, found := map[string]int{}, map[string]bool{}
	for _, s := range steps {
		found[s.recipe] = true
		if !s.isNew {
			edited[s.recipe]++
		}
		if wrong := s.check(dir); wrong != "" {
			broken = append(broken, wrong)
		}
	}
	for name, n := range most {
		switch {
		case !found[name]:
			broken = append(broken, name+": there is no such recipe")
		case edited[name] > n:
			broken = append(broken, fmt.Sprintf("%s: edits %d files, at most %d", name, edited[name], n))
		}
	}
	return broken
}

func TestRecipes(t *testing.T) {
	t.Parallel()
	dir, _ := root(t)
	page, err := os.ReadFile(filepath.Join(dir, "DEVELOPMENT.md"))
	require.NoError(t, err)
	for _, line := range checkRecipes(dir, string(page), mostEdited) {
		t.Error(line)
	}
}

func TestTheRecipeCheckerCanFail(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a.go"), []byte("package a\n\n// func Gone\n\tfunc Here() {}\n"), 0o600))
	for page, want := range map[string]string{
		"```recipe r\nedit a.go func Here()\nnew <x>.go\n```\nedit b.go nothing\n": "",
		"```recipe r\nedit a.go func Gone\n```\n":                                  `r: no line of a.go begins with "func Gone"`,
		"```recipe r\nedit b.go func Here()\n```\n":                                "no such file",
		"```recipe r\nedit a.go\n```\n":                                            "is neither",
		"```recipe r\nnew a.go func Here()\n```\n":                                 "is neither",
		"```recipe r\nmove a.go func Here()\n```\n":                                "is neither",
		"```recipe r\nnew b.go\n```\n":                                             "says nowhere",
		"```recipe r\nnew b/<x>/<y>.go\n```\n":                                     "there is no folder b",
		"```recipe r\nedit a.go func Here()\nedit a.go func Here()\n```\n":         "r: edits 2 files, at most 1",
		"```recipe s\nnew <x>.go\n```\n":                                           "r: there is no such recipe",
	} {
		got := strings.Join(checkRecipes(dir, page, map[string]int{"r": 1}), "\n")
		if want == "" {
			require.Empty(t, got, page)
		} else {
			require.Contains(t, got, want, page)
		}
	}
}

var (
	links    = regexp.MustCompile(`\]\(([^)#\s]*)(?:#([^)\s]*))?\)`)
	targets  = regexp.MustCompile("`make ([a-z][a-z0-9-]*)|(?m)^    make ([a-z][a-z0-9-]*)")
	quoted   = regexp.MustCompile("`([A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]*)+)`")
	headings = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notInID  = regexp.MustCompile("[^a-z0-9 _-]")
)

// checkPage returns one line for each thing that a page of the documentation names and that is not there: a page that
// it links, a heading in one, a file, or a target of the Makefile. name is its path below dir.
func checkPage(dir, name, text, makefile string) []string {
	var broken []string
	for _, m := range links.FindAllStringSubmatch(text, -1) {
		file, id := m[1], m[2]
		if strings.Contains(file, "://") {
			continue
		}
		other := text
		if file != "" {
			target := filepath.Join(dir, path.Dir(name), file)
			info, err := os.Stat(target)
			if err != nil {
				broken = append(broken, fmt.Sprintf("%s: links %s, which is not there", name, file))
				continue
			}
			if id == "" || info.IsDir() {
				continue
			}
			content, err := os.ReadFile(target)
			if err != nil {
				broken = append(broken, fmt.Sprintf("%s: %v", name, err))
				continue
			}
			other = string(content)
		}
		found := false
		for _, h := range headings.FindAllStringSubmatch(other, -1) {
			found = found || strings.ReplaceAll(notInID.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-") == id
		}
		if !found {
			broken = append(broken, fmt.Sprintf("%s: links #%s, which is no heading of %s", name, id, file))
		}
	}
	for _, m := range targets.FindAllStringSubmatch(text, -1) {
		if target := m[1] + m[2]; !strings.Contains(makefile, "\n"+target+":") {
			broken = append(broken, fmt.Sprintf("%s: names make %s, which is no target", name, target))
		}
	}
	for _, m := range quoted.FindAllStringSubmatch(text, -1) {
		first, _, _ := strings.Cut(m[1], "/")
		if info, err := os.Stat(filepath.Join(dir, first)); err != nil || !info.IsDir() || first == "bin" {
			continue // not a path of the repository
		}
		if _, err := os.Stat(filepath.Join(dir, m[1])); err != nil {
			broken = append(broken, fmt.Sprintf("%s: names %s, which is not there", name, m[1]))
		}
	}
	return broken
}

func TestDocumentation(t *testing.T) {
	t.Parallel()
	dir, _ := root(t)
	makefile, err := os.ReadFile(filepath.Join(dir, "Makefile"))
	require.NoError(t, err)
	pages := []string{"README.md", "DEVELOPMENT.md"}
	for _, pattern := range []string{"docs/*.md", "docs/adr/*.md"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		require.NoError(t, err)
		require.NotEmpty(t, found)
		for _, f := range found {
			rel, err := filepath.Rel(dir, f)
			require.NoError(t, err)
			pages = append(pages, filepath.ToSlash(rel))
		}
	}
	for _, name := range pages {
		text, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		for _, line := range checkPage(dir, name, string(text), string(makefile)) {
			t.Error(line)
		}
	}
}

// The README says why each module is here that the product needs, and no others.
func TestDependenciesHaveReasons(t *testing.T) {
	t.Parallel()
	dir, _ := root(t)
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		return string(text)
	}
	_, table, found := strings.Cut(read("README.md"), "## Dependencies\n")
	require.True(t, found)
	direct := regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(read("go.mod"), -1)
	require.NotEmpty(t, direct)
	for _, m := range direct {
		short := m[1][strings.LastIndex(strings.TrimSuffix(regexp.MustCompile(`/v\d+$`).ReplaceAllString(m[1], ""), "/"), "/")+1:]
		require.Contains(t, table, short, "%s is in go.mod and not in the README", m[1])
	}
}

func TestThePageCheckerCanFail(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "docs"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "docs/a.md"), []byte("# A page\n\n## The `ledger`, and more\n"), 0o600))
	for text, want := range map[string]string{
		"[a](docs/a.md) [b](docs/a.md#the-ledger-and-more) [c](https://x.test/y) `make here` `docs/a.md` `docs/` `a/b` `bin/x`": "",
		"[a](docs/b.md)":        "links docs/b.md, which is not there",
		"[a](docs/a.md#gone)":   "links #gone, which is no heading of docs/a.md",
		"# X\n[a](#y)":          "links #y",
		"`make gone`":           "make gone, which is no target",
		"\n    make gone X=1\n": "make gone, which is no target",
		"`docs/gone.go`":        "names docs/gone.go",
	} {
		got := strings.Join(checkPage(dir, "README.md", text, "\nhere: ## x\n"), "\n")
		if want == "" {
			require.Empty(t, got, text)
		} else {
			require.Contains(t, got, want, text)
		}
	}
}
