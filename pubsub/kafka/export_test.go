package kafka

// Buffered returns how many bytes are fetched and not handed out.
func (s *Subscriber) Buffered() int64 {
	var n int64
	for _, m := range s.members() {
		n += m.client.BufferedFetchBytes()
	}
	return n
}
