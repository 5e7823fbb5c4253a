package rest

import (
	"cmp"
	"reflect"
	"slices"

	"github.com/countersign-iot/countersign/api"
)

func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }

// limitOf is how many items a page has.
func limitOf(p api.Paging) int {
	return min(cmp.Or(p.Limit, api.DefaultLimit), api.MaxLimit)
}

// page shapes one page that a keeper gave.
func page[K, T any](list []K, next string, shape func(K) T) api.Page[T] {
	p := api.Page[T]{Items: make([]T, 0, len(list)), Next: next}
	for _, k := range list {
		p.Items = append(p.Items, shape(k))
	}
	return p
}

// pageOf cuts a page out of a list that is small enough to be had whole. keyOf
// gives each item's cursor; items are put in its order.
func pageOf[T any](items []T, p api.Paging, keyOf func(T) string) api.Page[T] {
	slices.SortFunc(items, func(a, b T) int { return cmp.Compare(keyOf(a), keyOf(b)) })
	if p.After != "" {
		from, found := slices.BinarySearchFunc(items, p.After, func(t T, k string) int { return cmp.Compare(keyOf(t), k) })
		if found {
			from++
		}
		items = items[from:]
	}
	out := api.Page[T]{Items: items}
	if limit := limitOf(p); len(items) > limit {
		out.Items = items[:limit]
		out.Next = keyOf(items[limit-1])
	}
	if out.Items == nil {
		out.Items = []T{}
	}
	return out
}
