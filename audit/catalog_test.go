package audit

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEachCheckHasAStageAndABlock compares the stages with the catalog, in both directions:
// a check that only one of them has is never made, and no test misses it.
func TestEachCheckHasAStageAndABlock(t *testing.T) {
	var staged []string
	for _, s := range stages() {
		staged = append(staged, s.checks...)
	}
	slices.Sort(staged)
	if d := cmp.Diff(slices.Sorted(maps.Keys(catalog())), staged); d != "" {
		t.Errorf("checks.txt and stages do not have the same checks, each once (-checks.txt +stages):\n%s", d)
	}
}
