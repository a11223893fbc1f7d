/**
 * Linked queue: a queue whose nodes can be removed from either end and from the middle in constant time.
 *
 * Promise: it allocates nothing, because each node is its own link; the cost per node does not depend on the length.
 */

/** A node of a queue: the waiting object itself. Only the queue writes these fields. */
export interface QueueNode<Node> {
  previousInQueue: Node | undefined;
  nextInQueue: Node | undefined;
}

export class LinkedQueue<Node extends QueueNode<Node>> {
  size = 0;
  first: Node | undefined = undefined;
  last: Node | undefined = undefined;

  /** Adds a node that is in no queue. */
  add(node: Node): void {
    const { last } = this;
    node.previousInQueue = last;
    if (last === undefined) this.first = node;
    else last.nextInQueue = node;
    this.last = node;
    this.size++;
  }

  /** Removes a node that is in this queue. */
  remove(node: Node): void {
    const { previousInQueue, nextInQueue } = node;
    if (previousInQueue === undefined) this.first = nextInQueue;
    else previousInQueue.nextInQueue = nextInQueue;
    if (nextInQueue === undefined) this.last = previousInQueue;
    else nextInQueue.previousInQueue = previousInQueue;
    node.previousInQueue = undefined;
    node.nextInQueue = undefined;
    this.size--;
  }
}
