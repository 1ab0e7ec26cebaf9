"""Systems that learn what actions lead to, and plan or imagine in what they learned."""
